"""Values of every type that a store keeps without an annotation, for property tests."""

# Values of any type are what these tests are about.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownLambdaType=false, reportUnknownParameterType=false, reportMissingParameterType=false

from __future__ import annotations

from datetime import UTC, time, timedelta, timezone, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

__all__ = ["AN_HOUR", "BERLIN", "values"]

BERLIN: Final = ZoneInfo("Europe/Berlin")
AN_HOUR: Final = timezone(timedelta(hours=1))

zones: st.SearchStrategy[tzinfo | None] = st.sampled_from(
    (None, UTC, AN_HOUR, timezone(timedelta(hours=1), "CET"), timezone(timedelta(seconds=1)), BERLIN)
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=zones, allow_imaginary=False)
    | st.dates()
    | st.builds(time.replace, st.times(), tzinfo=zones, fold=st.integers(0, 1))
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
)
keys = scalars | st.tuples(scalars, scalars) | st.frozensets(scalars, max_size=2)
values: st.SearchStrategy[Any] = st.recursive(
    scalars | st.binary().map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
        | st.sets(keys, max_size=3)
        | st.frozensets(keys, max_size=3)
    ),
    max_leaves=10,
)
