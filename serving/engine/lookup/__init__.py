"""Drafts from requests' own contexts alone, for targets without a drafter."""
