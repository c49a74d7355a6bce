"""Task functions: `@task`, their parameters, and the packing of their arguments and results."""
