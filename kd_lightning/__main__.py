"""As `kd-lightning`, for `python -m kd_lightning`."""

from kd_lightning.cli.front import main

if __name__ == "__main__":
    main()
