"""``python -m l4s_geo`` is ``l4s-map``; ``torchrun -m l4s_geo`` starts it several times."""

from l4s_geo.cli import run

if __name__ == "__main__":
    run()
