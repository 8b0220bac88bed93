"""What cannot be said in ONNX, by name."""

from __future__ import annotations

import jax.extend.core as jex

from jaxsim.integer.equations import UNKNOWN, line_of


class NoFormError(ValueError):
    """An equation that has no form in ONNX.

    Attributes:
      eqn: Equation.
      why: Reason, as the rest of a sentence that begins with the equation.
    """

    def __init__(self, eqn: jex.JaxprEqn, why: str, line: str):
        """Says it of a line."""
        super().__init__(f"export.onnx: {eqn.primitive.name} at {line} {why}")
        self.eqn, self.why, self.line = eqn, why, line

    def within(self, call: jex.JaxprEqn) -> NoFormError:
        """The error with the line of a call around the equation, where that of its own is unknown.

        Args:
          call: Equation that runs the other.
        """
        return NoFormError(self.eqn, self.why, line_of(call)) if self.line == UNKNOWN else self


def refusal(eqn: jex.JaxprEqn, why: str) -> NoFormError:
    """The error that an equation has no form in ONNX.

    Args:
      eqn: Equation.
      why: Reason, as the rest of a sentence that begins with the equation.
    """
    return NoFormError(eqn, why, line_of(eqn))


def site_refusal(site: str, why: str) -> ValueError:
    """The error that a site has no form in ONNX.

    Args:
      site: Name of the site.
      why: Reason, as the rest of a sentence that begins with the site.
    """
    return ValueError(f"export.onnx: {site} {why}")
