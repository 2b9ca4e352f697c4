"""`python src/make_figures.py ...` is `python make_figures.py ...`."""

if __name__ == "__main__":
    from forward import run

    run("make_figures.py")
