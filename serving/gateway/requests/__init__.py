"""What a client may send: size, form, fields and rules."""
