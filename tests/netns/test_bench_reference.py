"""The references of the benchmarks do their work: each gives as many samples as operations were asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.bench.reference import REFERENCES, References

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module", params=["auto", "packet"])
def references(request: pytest.FixtureRequest) -> Iterator[References]:
    with References(request.param) as made:
        yield made


@pytest.mark.parametrize("record_bytes", [64, 512, 4096])
@pytest.mark.parametrize("name", REFERENCES)
def test_each_reference_measures_and_measures_again(references: References, name: str, record_bytes: int) -> None:
    for count in (1, 50):
        measured = references.measure(name, record_bytes=record_bytes, count=count)
        assert len(measured.samples) == count
        assert min(measured.samples) > 0
        assert sum(measured.samples) <= measured.elapsed_ns
        assert measured.percentile(0.5) <= measured.percentile(0.99)


def test_the_mirror_keeps_many_records_under_way(references: References) -> None:
    measured = references.measure("tcp-mirror", record_bytes=65536, count=300, depth=32)
    assert len(measured.samples) == 300


def test_what_makes_no_sense_is_refused(references: References) -> None:
    with pytest.raises(ValueError, match="no reference 'pigeon'"):
        references.measure("pigeon", record_bytes=512, count=1)
    with pytest.raises(ValueError, match="1 to 262144 bytes, got 0"):
        references.measure("tcp-mirror", record_bytes=0, count=1)
