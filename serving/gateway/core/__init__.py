"""What every transport shares: authenticate, tier, admit, route, forward, meter."""
