"""`python -m train report`: a run as one HTML page for people who did not train it."""
