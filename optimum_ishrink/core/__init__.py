"""What every room stands on: registry, progress, device, processes, files that appear whole or not at all."""
