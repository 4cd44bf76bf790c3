"""``python -m l4s_geo`` is ``l4s-map``; ``torchrun -m l4s_geo`` starts it several times."""

from l4s_geo.cli import main, run

if __name__ == "__main__":
    main(prog_name="l4s-map")
