"""Takes nothing; gives `Option`: what one `--engine-option ENGINE.KEY=VALUE` sets, and the values it takes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """An option of an engine.

    text: what it sets. default: what holds where it is not set.
    choices: the values it takes; empty where these are the whole numbers from 0 on.
    """

    text: str
    default: str
    choices: tuple[str, ...] = ()

    @property
    def values(self) -> str:
        """The values it takes, in words."""
        if not self.choices:
            return "a whole number"
        return " or ".join((", ".join(self.choices[:-1]), self.choices[-1]))

    def takes(self, value: str) -> bool:
        """Whether it may be set to this."""
        return value in self.choices if self.choices else value.isdecimal()
