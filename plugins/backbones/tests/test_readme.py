"""What the README says of sizes and settings is what the networks have."""

from record_sizes import README, table, written


def test_sizes_in_the_readme_are_those_of_the_networks():
    """The table is the one its script writes: counted again, without computing anything."""
    assert written(README.read_text(encoding="utf-8")) == table()
