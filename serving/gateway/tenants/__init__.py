"""Who asks: keys and their tenants, what each tenant may use, and the file that says so."""
