"""`python src/eval_ntk_localization.py ...` is `python eval_ntk_localization.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("eval_ntk_localization.py")
