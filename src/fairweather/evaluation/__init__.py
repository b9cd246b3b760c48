"""Evaluation of restorers: PSNR and SSIM under named protocols, changes in photos without a reference, and the temporal
consistency of videos."""

from fairweather.evaluation.metrics import METRICS, PROTOCOLS, Protocol, find_protocol
from fairweather.evaluation.no_reference import NoReferenceReport, PhotoChange, evaluate_unpaired, measure_change
from fairweather.evaluation.report import evaluate_model, photo_table, score_table, write_photos, write_scores
from fairweather.evaluation.scores import PhotoScore, Score, SetScores, clear_pairs, outputs_from_folder, score_set
from fairweather.evaluation.temporal_consistency import TemporalMeter, TemporalScore, temporal_score

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "PhotoChange",
    "PhotoScore",
    "Protocol",
    "Score",
    "SetScores",
    "TemporalMeter",
    "TemporalScore",
    "NoReferenceReport",
    "clear_pairs",
    "measure_change",
    "evaluate_model",
    "evaluate_unpaired",
    "find_protocol",
    "outputs_from_folder",
    "photo_table",
    "score_set",
    "score_table",
    "temporal_score",
    "write_photos",
    "write_scores",
]
