"""Lower bounds on the loss of any solution at a level."""
