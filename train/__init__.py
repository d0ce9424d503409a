"""Train timm models on feedline datasets: `python -m train --help`."""
