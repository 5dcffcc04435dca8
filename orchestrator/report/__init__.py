"""Records made readable: comparisons, curves, forecasts, differences, and a page of them."""
