"""What may go wrong between an operator and its API server, from dice or at one chosen call."""

import random
from dataclasses import dataclass

from kubernetes.aio.client.exceptions import ApiException


class Crash(BaseException):
    """The operator was killed."""


@dataclass
class KilledAt:
    """The operator is killed ``moment`` (before or after) its call of that number, once."""

    number: int
    moment: str
    done: bool = False

    def before(self, call: int) -> None:
        self._meet("before", call)

    def after(self, call: int) -> None:
        self._meet("after", call)

    def _meet(self, moment: str, call: int) -> None:
        if not self.done and (moment, call) == (self.moment, self.number):
            self.done = True
            raise Crash


class Trouble:
    """Every sixth call or so meets something: a refusal that passes, a lost request or answer, a kill."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    def before(self, _call: int) -> None:
        luck = self._dice.random()
        if luck < 0.06:
            raise ApiException(status=self._dice.choice([410, 429, 500, 503]), reason="trouble")
        if luck < 0.08:
            raise TimeoutError("the request never arrived")
        if luck < 0.10:
            raise Crash

    def after(self, _call: int) -> None:
        luck = self._dice.random()
        if luck < 0.05:
            raise TimeoutError("carried out, and the answer was lost")
        if luck < 0.07:
            raise Crash
