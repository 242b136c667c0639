"""Running on ranks and devices: training to a run folder, drawing to an ensemble."""
