"""What a rank reports (load, step times, acceptance, spans), and the routes that serve it."""
