"""Decides who answers: Triton, or this server for the models that have been switched."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Callable

from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.repository import Repository

from .facts import Facts
from .model import ShadowedModel
from .options import ShadowOptions

logger = logging.getLogger("penstock.shadow")

MAX_UNKNOWN_MODELS = 256
"""The most models that are not served here and yet have counts of their own. More share
`OTHER_MODELS`: clients may ask for any name.
"""

OTHER_MODELS = "(others)"

MAX_SEQUENCES = 1 << 14
"""So many sequences of a model are known at a time. If there are more, those without a step for the
longest time are forgotten.
"""

UNKNOWN_IDLE_SECONDS = 60.0
"""When a sequence without a step has ended at Triton, if the model here keeps none."""


class Switch:
    """The models, and the switch of each.

    Nothing fails in a switch: a request goes to Triton or here, by what is true when it comes, and
    what Triton has begun it ends. So do the sequences that live there.
    """

    def __init__(self, repository: Repository, options: ShadowOptions) -> None:
        self.models: dict[str, ShadowedModel] = {}
        self.is_done = False
        """All requests are answered here, also those that name no model."""
        self.at_triton = 0
        """Forwarded requests that Triton has not answered to the end."""
        self.on_switch: set[Callable[[], None]] = set()
        """Called after each switch, and when sequences have ended at Triton without a word."""
        self._repository = repository
        self._options = options
        self._unknown = 0
        self._told = False
        self._has_sequences = asyncio.Event()

    def pipeline(self, name: str) -> Pipeline | None:
        """Return the pipeline that serves a model here, None if none is ready."""
        return self._repository.pipelines.get(name)

    def is_served(self, name: str) -> bool:
        """Return whether the repository has a model, loaded or not."""
        return name in self._repository.configs

    def end_here(self, name: str, sequence: int | str) -> None:
        """End a sequence of a model of this server: its next steps will not come here."""
        pipeline = self.pipeline(name)
        if pipeline is not None and pipeline.sequences is not None:
            pipeline.sequences.depart_newest(sequence)

    def model(self, name: str) -> ShadowedModel:
        known = self.models.get(name)
        if known is not None:
            return known
        if name not in self._repository.configs:
            if self._unknown >= MAX_UNKNOWN_MODELS or len(name) > MAX_UNKNOWN_MODELS:
                name = OTHER_MODELS
                if name in self.models:
                    return self.models[name]
            self._unknown += 1
        model = self.models[name] = ShadowedModel(name)
        model.is_here = self.is_done
        return model

    def compared(self, model: ShadowedModel) -> None:
        """Switch a model if enough of its requests in a row have agreed."""
        pipeline = self.pipeline(model.name)
        if pipeline is not None and model.pipeline() is not pipeline:
            model.pipeline = weakref.ref(pipeline)
            model.streak = min(model.streak, 1)  # another one has agreed before
        after = self._options.switch_after
        if after is None or model.is_here or model.streak < after:
            return
        if not model.not_compared["shared_memory"]:  # what does not run here may fail here
            self._take(model)
            if all(
                name in self.models and self.models[name].is_here
                for name in self._repository.configs
            ):
                self._finish()

    def take_all(self) -> None:
        """Answer all requests here from now on."""
        for name in self._repository.configs:
            self.model(name)
        for model in self.models.values():
            if not model.is_here:
                self._take(model)
        self._finish()

    def why_not(self) -> list[str]:
        """Return what would fail after a switch of all models; nothing if it may come."""
        reasons = []
        if (reason := self._repository.not_ready) or self._repository.state != "ready":
            reasons.append(reason or f"the models here are {self._repository.state}")
        for name, model in self.models.items():
            if model.is_here:
                continue
            if self.pipeline(name) is None and model.requests:
                reasons.append(f"model '{name}' is asked for, and is not ready here")
            if count := model.not_compared["shared_memory"]:
                reasons.append(
                    f"{count} requests for model '{name}' used shared memory, and were not compared"
                )
        return reasons

    def _take(self, model: ShadowedModel) -> None:
        model.is_here = True
        logger.info(
            "switched: model %r is answered here, after %d requests in a row that agreed",
            model.name,
            model.streak,
        )
        self._tell()

    def _finish(self) -> None:
        self.is_done = True
        logger.info("switched: all requests are answered here")
        self._tell()

    def _tell(self) -> None:
        for call in tuple(self.on_switch):
            call()
        self.look()

    # requests

    def begins_at_triton(self, model: ShadowedModel | None, facts: Facts) -> None:
        """Count a request that is forwarded."""
        self.at_triton += 1
        if model is not None:
            model.at_triton += 1
            model.most_at_triton = max(model.most_at_triton, model.at_triton)
            self.note_step(model, facts)

    def note_step(self, model: ShadowedModel, facts: Facts) -> None:
        """Note that Triton gets a step of a sequence, which lives there from now on."""
        if facts.sequence is not None:
            model.sequences.pop(facts.sequence, None)
            model.sequences[facts.sequence] = time.monotonic()  # the last one of them
            if len(model.sequences) > MAX_SEQUENCES:
                del model.sequences[next(iter(model.sequences))]
            self._has_sequences.set()

    def ended_at_triton(self, model: ShadowedModel | None, facts: Facts) -> None:
        """Note that Triton has answered a forwarded request, or has failed."""
        self.at_triton -= 1
        if model is not None:
            model.at_triton -= 1
            self.note_step(model, facts)
            if facts.sequence is not None and facts.end:
                model.sequences.pop(facts.sequence, None)
        if self.is_done:
            self.look()

    def goes_to_triton(self, model: ShadowedModel, facts: Facts) -> bool:
        """Return whether a request goes to Triton: also after the switch, if its sequence lives
        there.
        """
        if not model.is_here:
            return True
        if facts.start and facts.sequence is not None:
            model.sequences.pop(facts.sequence, None)  # its client has given it up
        return facts.sequence in model.sequences

    def look(self) -> None:
        """Forget sequences that have ended at Triton, and say when nothing is left there."""
        now = time.monotonic()
        for model in self.models.values():
            if model.forget_idle_sequences(now - self._idle_seconds(model)) and model.is_here:
                for call in tuple(self.on_switch):
                    call()
        if self.is_done and not self.is_left and not self._told:
            self._told = True
            logger.info("nothing is left at Triton: it may be stopped")

    @property
    def is_left(self) -> bool:
        """True while Triton works on a request, or has a sequence."""
        return bool(self.at_triton) or any(model.sequences for model in self.models.values())

    async def watch(self) -> None:
        """Look when a sequence has ended without a request, for ever."""
        while True:
            ends = [
                next(iter(model.sequences.values())) + self._idle_seconds(model)
                for model in self.models.values()
                if model.sequences  # in the order of their last steps
            ]
            if ends:
                await asyncio.sleep(max(0.0, min(ends) - time.monotonic()))
                self.look()
            else:
                self._has_sequences.clear()
                await self._has_sequences.wait()

    def _idle_seconds(self, model: ShadowedModel) -> float:
        """Return after how many seconds without a step a sequence of a model has ended."""
        pipeline = self.pipeline(model.name)
        keeps = None if pipeline is None else pipeline.sequences
        return UNKNOWN_IDLE_SECONDS if keeps is None else keeps.idle_timeout
