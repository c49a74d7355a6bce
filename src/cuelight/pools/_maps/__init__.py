"""Maps of pools: their handles, their sources of items, and how workers run the items."""
