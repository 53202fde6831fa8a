"""One engine's steps without a model: texts with known acceptance, users, policies, and what the users get."""
