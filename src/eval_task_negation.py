"""`python src/eval_task_negation.py ...` is `python eval_task_negation.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("eval_task_negation.py")
