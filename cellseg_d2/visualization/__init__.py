"""Pictures: cells over their image, contact sheets, training curves, figures of a data set."""
