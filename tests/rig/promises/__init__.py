"""One module for each group of promises; each has a tuple PROMISES."""
