"""Search for settings: trials that are ordinary trainings, proposed by Optuna, kept in one folder."""
