"""The schedule of temperatures."""

from bise_prune.mask_search.schedule import temperatures


def test_the_papers_schedule_has_100_epochs():
    values = temperatures(10, 0.5, 1e-3)
    assert len(values) == 100
    assert values[0] == 1 and values[10] == 0.5 and values[-1] == 2.0**-9
