"""Names as short as they can be and still be told apart."""

from collections.abc import Sequence


def shortest_tails(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Of each path as much of its end as no other one ends in; paths that are the same have the same."""
    different = set(paths)

    def is_told_apart(path: tuple[str, ...], length: int) -> bool:
        return all(other == path or other[-length:] != path[-length:] for other in different)

    return [
        next((path[-length:] for length in range(1, len(path)) if is_told_apart(path, length)), path) for path in paths
    ]
