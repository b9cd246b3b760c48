"""How good a restorer is: PSNR and SSIM under named protocols on pairs, what it changes in photos without a truth,
and whether clips stay as steady as they came."""

from fairweather.evaluation.photos import photo_table, write_photos
from fairweather.evaluation.protocols import METRICS, PROTOCOLS, Protocol, find_protocol
from fairweather.evaluation.report import evaluate, table, write_scores
from fairweather.evaluation.sets import PhotoScore, Score, SetScores, against_themselves, from_folder, score_set
from fairweather.evaluation.temporal import TemporalMeter, TemporalScore, temporal_score
from fairweather.evaluation.unpaired import Unpaired, evaluate_unpaired
from fairweather.evaluation.unreferenced import Change, change

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "Change",
    "PhotoScore",
    "Protocol",
    "Score",
    "SetScores",
    "TemporalMeter",
    "TemporalScore",
    "Unpaired",
    "against_themselves",
    "change",
    "evaluate",
    "evaluate_unpaired",
    "find_protocol",
    "from_folder",
    "photo_table",
    "score_set",
    "table",
    "temporal_score",
    "write_photos",
    "write_scores",
]
