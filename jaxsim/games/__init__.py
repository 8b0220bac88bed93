"""Two-player zero-sum games as arrays and pure functions."""

from jaxsim.games.game import Draws, Episode, Game, alone, nash_conv, payoff, payoffs
from jaxsim.games.lotto import lotto
from jaxsim.games.matrix import (
    blotto_matrix,
    games_of_skill,
    matrix_game,
    rock_paper_scissors,
    skill_matrix,
)
from jaxsim.games.pennies import matching_pennies
from jaxsim.games.poker import kuhn_poker, leduc_poker, read_policy
from jaxsim.games.rps import rps_mixture
from jaxsim.games.seats import both_seats, by_logits
from jaxsim.games.sequence import SequenceGame
from jaxsim.games.tree import Chance, Decision, Named, sequence_form

__all__ = [
    "Game",
    "Draws",
    "Episode",
    "alone",
    "payoff",
    "payoffs",
    "nash_conv",
    # matrices
    "matrix_game",
    "games_of_skill",
    "skill_matrix",
    "blotto_matrix",
    "rock_paper_scissors",
    # smooth games
    "rps_mixture",
    "lotto",
    "matching_pennies",
    # hidden information
    "SequenceGame",
    "Named",
    "Chance",
    "Decision",
    "sequence_form",
    "both_seats",
    "by_logits",
    "kuhn_poker",
    "leduc_poker",
    "read_policy",
]
