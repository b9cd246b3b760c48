"""How good a restorer is: PSNR and SSIM under named protocols, on a set of pairs or a folder of sets."""

from fairweather.evaluation.photos import photo_table, write_photos
from fairweather.evaluation.protocols import METRICS, PROTOCOLS, Protocol, find_protocol
from fairweather.evaluation.report import evaluate, table, write_scores
from fairweather.evaluation.sets import PhotoScore, Score, SetScores, against_themselves, from_folder, score_set

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "PhotoScore",
    "Protocol",
    "Score",
    "SetScores",
    "against_themselves",
    "evaluate",
    "find_protocol",
    "from_folder",
    "photo_table",
    "score_set",
    "table",
    "write_photos",
    "write_scores",
]
