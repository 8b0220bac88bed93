"""Language models: what they lose on a text, what they write, and how fast."""

from jaxsim.evaluate.language.comparison import LanguageComparison, LanguageRow, compare
from jaxsim.evaluate.language.early import (
    EarlyScores,
    EarlyText,
    ExitThreshold,
    exit_threshold,
    score_early,
    write_early,
)
from jaxsim.evaluate.language.estimate import Estimate, agreement, perplexity
from jaxsim.evaluate.language.scores import Scores, score
from jaxsim.evaluate.language.speculation import Speculation, speculate
from jaxsim.evaluate.language.throughput import Speed, speed
from jaxsim.evaluate.language.window import windows
from jaxsim.evaluate.language.writing import generate

__all__ = [
    "EarlyScores",
    "EarlyText",
    "Estimate",
    "ExitThreshold",
    "LanguageComparison",
    "LanguageRow",
    "Scores",
    "Speculation",
    "Speed",
    "agreement",
    "compare",
    "exit_threshold",
    "generate",
    "perplexity",
    "score",
    "score_early",
    "speculate",
    "speed",
    "windows",
    "write_early",
]
