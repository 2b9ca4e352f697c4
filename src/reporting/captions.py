"""What each figure shows, in a sentence or two: for the page, and the index of a folder of results."""

CAPTIONS = {
    "fig02_posthoc_advantage": "Left: single-task accuracy of non-linear fine-tuning against its post-hoc "
    "linearization; each axis has a scale of its own. Right: each task's difference, over the share of images that "
    "guessing gets wrong. One colour and symbol a task.",
    "fig05_linear_advantage": "The same for linear fine-tuning: what training in the tangent space costs on each task.",
    "fig03_disentanglement": "Disentanglement error ξ over the coefficients of two tasks: 0 where adding one task "
    "changes nothing on the other's images. The red box is where coefficients are searched.",
    "fig10_disentanglement_linear": "Disentanglement error ξ of linear fine-tuning, over the same coefficients.",
    "fig09_disentanglement_scale": "Disentanglement error ξ of one pair of tasks for each model of the suite.",
    "fig06_eigenfunctions": "Local energy of the tangent kernel's leading eigenfunctions at each image of the task, of "
    "held-out images of it, and of a control task. Each eigenfunction has a mean square of 1 over the images that were "
    "diagonalised. Black lines and numbers: means. ▼: an energy below the axis, or none. Shuffled: the ratio where "
    "labels of task and control are mixed.",
    "fig14_eigenfunctions_other_pairs": "Local energies for further pairs of tasks.",
    "fig15_eigenfunctions_random_init": "Local energies of the network without pre-training.",
    "ntk_ranks": "Energy on held-out images over energy on the control, by number of eigenfunctions; 1 is no locality.",
    "addition": "Mean validation accuracy along α when all task vectors are added. Markers: the α chosen.",
    "negation": "Left: target accuracy against what is kept of the control's, along α. Right: each task's target "
    "accuracy on test at the chosen α; lower is better.",
    "mask_density": "Share of all weights that each task's mask keeps.",
    "weights_shared": "Share of weights that exactly k tasks use: none (catastrophic), one (selfish), all (universal).",
    "mask_overlap": "Intersection over union of the masks of every two tasks. Each panel has a scale of its own.",
    "consensus_thresholds": "Consensus merging by the number of tasks that must use a weight. Consensus TIES is run at "
    "every threshold on the first benchmark alone, and on larger ones at its default, k = 2.",
    "adaptation": "Mean validation accuracy while the shared mask is learned, and while λ is learned.",
    "adaptation_entropy": "Entropy of the predictions of each task while a method adapts.",
    "lambda_heat_map": "How far adaptation moved λ of every task and tensor, in the order of the network.",
    "concrete_mask_density": "Mean of the learned mask in every tensor, in the order of the network; those of AdaRank "
    "are of singular values, and of matrices alone.",
    "sigmoid_temperatures": "The relaxed step function of Concrete masks at several temperatures; no measurement.",
    "claims": "Every claim of the papers: the measured difference with its intervals, beside the published one.",
    "alignment": "How much of the task vectors lies in the leading subspace of what a method merges, against the share "
    "of fine-tuning's gain that it keeps: means over tasks and seeds. Methods are named where there is "
    "room. r: over methods and tasks.",
    "interference": "Singular task interference of every matrix, over its scale, in the order of the network.",
    "layer_interference": "How much another task's vector changes the features of a task's images when it moves one "
    "part of the network alone, over what the task's own vector changes there: geometric means over pairs of tasks. At "
    "the dashed line both change as much. Exact for tangent vectors.",
    "connectivity": "Left: mean loss on the test images of two tasks, on the line between the models fine-tuned on "
    "each, over pairs of tasks. Right: accuracy on the task and on the control set on the line from θ0 to the "
    "fine-tuned model (WiSE-FT), over tasks.",
    "course": "The loss with the labels on the test images while a method adapts to them, and what can be minimised "
    "there without labels: the entropy of the predictions, and their cross-entropy with those of the tasks' own "
    "models. Solid: what the method minimises. Means over tasks.",
    "mergeability": "Correlation over pairs of tasks of measures of a pair with the normalised accuracy of the model "
    "merged of it. Measures with a star need images, the others weights alone. Dashed: |r| = 0.5.",
    "accuracy_lost": "Task arithmetic: test accuracy of the merged model, what it loses to the other tasks' vectors, "
    "and what each task's own vector loses by the coefficient alone; together the fine-tuned model's.",
    "representation_bias": "How far a merged model's representations are from those of the task's own model, block by "
    "block, over their size; means over tasks.",
    "calibration": "Expected calibration error before and after one temperature for each task, chosen on validation, "
    "and the geometric mean of those temperatures: above 1 a model is over-confident.",
    "storage": "Accuracy against all that is stored, in bits a weight and task. Lines join the options "
    "of a method.",
    "plateaus": "The coefficients whose mean validation accuracy is within a point of the best, over the best (line). "
    "Arrows: the grid ends before the accuracy falls. Of LiNeS β, of tangent matching iterations.",
    "task_subsets": "Normalised accuracy of a few methods of each family by the number of tasks: means over random "
    "sets of tasks and seeds.",
    "methods": "Every merging method on the first benchmark, best first; brackets join those not told apart. Small "
    "dots: seeds. Intervals end at 100 %, beyond which there is no accuracy.",
    "prediction": "Accuracy of every method here against its published one, a panel for each published table. Named: "
    "methods that stand farthest from their published place. ρ: Spearman's rank correlation.",
    "number_of_tasks": "Normalised accuracy and storage by the number of merged tasks; bands: the range over subsets.",
    "radar": "Test accuracy of every task under every method that does not adapt, beside the fine-tuned models.",
    "task_vector_cosines": "Cosines between task vectors: how nearly orthogonal the tasks' directions are.",
    "contact": "Pictures of every task of the suite, of the control set and of the pre-training mixture.",
    "contact_more": "Pictures of the tasks that only the larger benchmarks have.",
    "corruptions": "Four test pictures under every corruption, at severities 1 to 5 from left to right.",
}  # fmt: skip


def caption(name: str) -> str:
    """Of a figure; where none stands here, the first line of what draws it."""
    if name in CAPTIONS:
        return CAPTIONS[name]
    from src.reporting.figures import FIGURES, PICTURES  # here, so that the names of figures do not wait for torch

    drawing = FIGURES[name].function if name in FIGURES else PICTURES[name]
    return (drawing.__doc__ or "").split("\n")[0]
