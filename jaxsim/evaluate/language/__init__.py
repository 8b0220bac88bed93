"""Language models: what they lose on a text, what they write, and how fast."""

from jaxsim.evaluate.language.comparison import LanguageComparison, LanguageRow, compare
from jaxsim.evaluate.language.estimate import Estimate, agreement, perplexity
from jaxsim.evaluate.language.scores import Scores, score
from jaxsim.evaluate.language.speculation import Speculation, speculate
from jaxsim.evaluate.language.throughput import Speed, speed
from jaxsim.evaluate.language.window import windows
from jaxsim.evaluate.language.writing import generate

__all__ = [
    "Estimate",
    "LanguageComparison",
    "LanguageRow",
    "Scores",
    "Speculation",
    "Speed",
    "agreement",
    "compare",
    "generate",
    "perplexity",
    "score",
    "speculate",
    "speed",
    "windows",
]
