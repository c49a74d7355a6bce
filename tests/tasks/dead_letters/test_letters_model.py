"""The invariants of `MemoryLetters` in `_dead_letters/_sources.py`, for any order of events."""

from __future__ import annotations

import anyio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cuelight._dead_letters._entry import DeadLetterEntry, LetterFilter
from cuelight._dead_letters._sources import MemoryLetters

KEEP = 5
KINDS = st.sampled_from(["a", "b"])


class Letters(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.kept = MemoryLetters(KEEP)
        self.model: list[DeadLetterEntry] = []
        self.added = self.removed = 0

    def pick(self, number: int) -> str:
        return self.model[number % len(self.model)].id

    @rule(kind=KINDS, payload=st.integers())
    def add(self, kind: str, payload: int) -> None:
        letter = self.kept.add(DeadLetterEntry(id="", task_type=kind, payload=payload))
        # 3. ... their sequence, which no other letter ever gets.
        self.added += 1
        assert letter.sequence == self.added
        self.model.append(letter)
        # 2. There are never more than `keep` letters; the oldest give way.
        self.model = self.model[-KEEP:]

    @precondition(lambda self: self.model)
    @rule(number=st.integers(0, 9))
    def remove(self, number: int) -> None:
        letter_id = self.pick(number)
        assert anyio.run(self.kept.remove, [letter_id, "unknown", letter_id]) == 1
        self.model = [letter for letter in self.model if letter.id != letter_id]
        self.removed += 1

    @precondition(lambda self: self.model)
    @rule(number=st.integers(0, 9), payload=st.integers())
    def edit(self, number: int, payload: int) -> None:
        letter_id = self.pick(number)
        assert anyio.run(self.kept.edit, letter_id, payload)
        found = anyio.run(self.kept.get, letter_id)
        assert found is not None
        assert found.payload == payload
        self.model = [found if letter.id == letter_id else letter for letter in self.model]

    @rule(kind=KINDS, after=st.integers(0, 20), limit=st.integers(1, 4))
    def page(self, kind: str, after: int, limit: int) -> None:
        wanted = [letter for letter in self.model if letter.task_type == kind and letter.sequence > after]
        assert anyio.run(self.kept.page, LetterFilter(task_type=kind), after, limit) == wanted[:limit]

    @invariant()
    def agrees(self) -> None:
        # 3. Letters are listed in the order of their sequence.
        assert anyio.run(self.kept.page, LetterFilter(), 0, 100) == self.model
        assert anyio.run(self.kept.count) == len(self.model) <= KEEP
        # 1. A letter that was added is there until it is removed or crowded out, and what was crowded out is counted.
        assert self.added == len(self.model) + self.removed + self.kept.dropped


Letters.TestCase.settings = type(Letters.TestCase.settings)(max_examples=20, stateful_step_count=20)
TestLetters = Letters.TestCase
