"""What every package uses: registry, progress, devices, processes, atomic output, digests, JSON, tables, plots."""
