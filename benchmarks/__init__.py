"""Side-by-side measurements, one command each; raw figures go to results/."""
