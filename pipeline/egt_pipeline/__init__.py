"""The stage programs: each reads published artifacts, computes one thing and publishes it once."""
