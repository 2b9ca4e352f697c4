"""Where the eigenfunctions of the tangent kernel live: their energy on the points of a task and of a control task.

    K φ_ρ = λ_ρ φ_ρ,        E_loc(x) = Σ_ρ φ_ρ(x)², the sum over the leading eigenfunctions

Source: Ortiz-Jimenez et al. 2023, section 6.2 and Figures 6, 14, 15. The paper names neither the number of samples nor
the number of eigenfunctions. `localize` diagonalises the kernel on the task alone and carries the eigenfunctions to
other points; `localize_jointly` diagonalises it on both tasks at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from src.runtime.messages import NotFinite


@dataclass(frozen=True)
class Localization:
    """Local energy E_loc(x) = Σ_ρ φ_ρ(x)² of the leading eigenfunctions, for several numbers of them at once.

    eigenvalues     of the diagonalised matrix, descending, null ones cut off
    shares          Σ of the leading eigenvalues over Σ of all, one per count
    counts          how many leading eigenfunctions each row of `energy` counts (of these, `kept` enter the sum)
    energy          group of points -> (counts, points)
    task_share      per eigenfunction, the part of its energy that lies on D_t: 1 localised there, 0 on the control;
                    None where the kernel was diagonalised on D_t alone
    shuffled_ratio  joint decomposition: the ratio when the points' labels are shuffled, one per count; else None
    """

    eigenvalues: np.ndarray
    shares: np.ndarray
    counts: np.ndarray
    kept: np.ndarray
    energy: Mapping[str, np.ndarray]
    task_share: np.ndarray | None = None
    shuffled_ratio: np.ndarray | None = None

    def ratio(self, over: str = "control", group: str = "task") -> np.ndarray:
        """Mean energy on a group of points over that on another, one per count.

        inf where the latter is zero, nan where both are: none of the leading eigenfunctions was kept.
        """
        return _ratio(self.energy[group].mean(1), self.energy[over].mean(1))


def _ratio(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return one / two


def _eigenfunctions(kernel: np.ndarray, tolerance: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, descending, and unit eigenvectors in columns, without the numerically null ones."""
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"expected a square kernel matrix, got {kernel.shape}")
    if not np.isfinite(kernel).all():
        raise NotFinite("the kernel matrix is not finite")
    values, vectors = scipy.linalg.eigh(kernel)
    values, vectors = values[::-1], vectors[:, ::-1]
    if tolerance is None:
        tolerance = len(kernel) * float(np.finfo(np.float32).eps)
    if values[0] <= 0:
        raise ValueError("the kernel matrix has no positive eigenvalue")
    keep = values > tolerance * values[0]
    return values[keep], vectors[:, keep]


def _counts(values: np.ndarray, ranks: Sequence[float | int]) -> np.ndarray:
    """Numbers of eigenfunctions: an int counts them; a float is the share of the trace that they carry, 1.0 all."""
    carried = np.cumsum(values) / values.sum()
    counts = []
    for rank in ranks:
        if isinstance(rank, float):
            if not 0 < rank <= 1:
                raise ValueError(f"a share of the trace lies in (0, 1], got {rank}")
            counts.append(len(values) if rank == 1 else int(np.searchsorted(carried, rank)) + 1)
        else:
            if rank < 1:
                raise ValueError(f"at least one eigenfunction is needed, got {rank}")
            counts.append(min(rank, len(values)))
    return np.minimum(counts, len(values))


def localize(
    kernel: np.ndarray,
    cross: Mapping[str, np.ndarray],
    ranks: Sequence[float | int] = (0.9,),
    tolerance: float | None = None,
) -> Localization:
    """Eigenfunctions of K on D_t, carried to other points by Nyström's formula.

    kernel: K on D_t, (n, n) = U Λ Uᵀ; cross: group of points -> K between these and D_t, (m, n). With unit mean square
    on D_t, (1/n) Σ_ν φ_ρ(x_ν)² = 1, the eigenfunctions are

        φ_ρ(x) = (√n / λ_ρ) Σ_ν K(x, x_ν) U_νρ,    on D_t itself √n U_νρ.

    So the mean energy on D_t is the number of eigenfunctions, whatever the kernel, and with all n of an invertible
    kernel the energy is n at every point of D_t: only the energy elsewhere is a finding, and only for few leading
    eigenfunctions, since 1/λ_ρ makes those of small eigenvalue noise away from D_t. Pass held-out points of the task
    as a group beside `control`: they are what the control should be compared with, as neither was diagonalised.

    `ranks`: numbers of leading eigenfunctions; a float is the share of the trace that they carry. The default, 90 %,
    leaves out the tail that fits the diagonalised points alone. A finding should hold for several: pass them.
    Eigenvalues below `tolerance` times the largest are null; the default is n times the resolution of float32.
    """
    kernel = np.asarray(kernel, dtype=np.float64)
    values, vectors = _eigenfunctions(kernel, tolerance)
    counts = _counts(values, ranks)
    samples = len(kernel)
    functions = {"task": np.sqrt(samples) * vectors}
    for group, matrix in cross.items():
        matrix = np.asarray(matrix, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != samples:
            raise ValueError(f"{group}: expected a kernel of shape (points, {samples}), got {matrix.shape}")
        functions[group] = np.sqrt(samples) * matrix @ vectors / values
    return Localization(
        values,
        values.cumsum()[counts - 1] / values.sum(),
        counts,
        counts,
        {group: (phi**2).cumsum(1)[:, counts - 1].T for group, phi in functions.items()},
    )


def localize_jointly(
    kernel: np.ndarray,
    task: np.ndarray,
    ranks: Sequence[float | int] = (0.9,),
    tolerance: float | None = None,
    shuffles: int = 20,
    seed: int = 0,
) -> Localization:
    """Eigenfunctions of K on D_t ∪ D_t' together, those of the task kept.

    kernel: (N, N) over both supports; task: (N,) bool, True on D_t. With unit mean square on the union,
    φ_ρ(x_ν) = √N U_νρ. All N eigenfunctions together have the energy N at every point, so a choice is needed: among the
    leading ones of `ranks`, those are kept that have more mean energy on D_t than on D_t'. The choice favours D_t;
    `shuffled_ratio` says by how much: it is the ratio of the mean energies over `shuffles` shufflings of the labels.
    """
    task = np.asarray(task, dtype=bool)
    kernel = np.asarray(kernel, dtype=np.float64)
    if task.shape != kernel.shape[:1] or task.all() or not task.any():
        raise ValueError(f"expected {len(kernel)} labels that mark some points, not all; got {task.shape}")
    values, vectors = _eigenfunctions(kernel, tolerance)
    counts = _counts(values, ranks)
    squares = len(kernel) * vectors**2  # (points, eigenfunctions)

    def energies(labels: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        of_task = squares[labels].mean(0) > squares[~labels].mean(0)  # (eigenfunctions,)
        energy = (squares * of_task).cumsum(1)[:, counts - 1].T  # (counts, points)
        return of_task, {"task": energy[:, labels], "control": energy[:, ~labels]}

    of_task, energy = energies(task)
    random = np.random.default_rng(seed)
    shuffled = [energies(random.permutation(task))[1] for _ in range(shuffles)]
    on_task, on_control = (sum(groups[group].mean(1) for groups in shuffled) for group in ("task", "control"))
    return Localization(
        values,
        values.cumsum()[counts - 1] / values.sum(),
        counts,
        of_task.cumsum()[counts - 1],
        energy,
        squares[task].sum(0) / len(kernel),
        _ratio(on_task, on_control),
    )
