"""Prompts whose answers repeat most of them: code and lists to be given back with small changes."""

from collections.abc import Sequence

_CODE = (
    """def total_price(items, tax_rate):
    subtotal = 0
    for item in items:
        if item.quantity > 0:
            subtotal += item.price * item.quantity
    tax = subtotal * tax_rate
    return subtotal + tax""",
    """class Counter:
    def __init__(self, start):
        self.value = start
        self.history = []

    def increment(self, amount):
        self.history.append(self.value)
        self.value += amount
        return self.value

    def reset(self):
        self.history.append(self.value)
        self.value = 0""",
    """def read_settings(path):
    settings = {}
    with open(path) as file:
        for line in file:
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, value = line.split("=", 1)
            settings[name.strip()] = value.strip()
    return settings""",
    """function renderTable(rows) {
  const table = document.createElement("table");
  for (const row of rows) {
    const line = document.createElement("tr");
    for (const cell of row) {
      const field = document.createElement("td");
      field.textContent = cell;
      line.appendChild(field);
    }
    table.appendChild(line);
  }
  return table;
}""",
    """SELECT customers.name, orders.number, orders.placed_at, orders.total
FROM customers
JOIN orders ON orders.customer_id = customers.id
WHERE orders.placed_at >= '2026-01-01'
AND orders.total > 100
ORDER BY orders.placed_at DESC, customers.name
LIMIT 50;""",
    """server:
  host: 127.0.0.1
  port: 8000
  workers: 4
database:
  host: db.example.com
  port: 5432
  user: reports
  pool_size: 10
logging:
  level: info
  file: /var/log/reports.log""",
)
_TEXTS = (
    "The library opens at nine in the morning and closes at six in the evening. On Saturdays it opens at ten. Readers "
    "may borrow five books for three weeks. Whoever brings a book back late pays ten cents for each day.",
    "Mix two cups of flour with one spoon of sugar and a pinch of salt. Add one egg and half a cup of milk. Stir until "
    "the dough is smooth. Let it rest for twenty minutes. Bake it in a hot pan with a little butter.",
    "Dear Mr. Brown, thank you for your letter of 3 May. We have looked at your question about the delivery of the "
    "chairs. The chairs left our store on 28 April and will reach you by 10 May. Yours sincerely, Clara Green",
    "1. Apples, 2 kilos, 4.50\n2. Bread, 1 loaf, 2.80\n3. Milk, 3 bottles, 3.60\n4. Cheese, 500 grams, 7.20\n"
    "5. Coffee, 1 packet, 6.90\n6. Tomatoes, 1 kilo, 3.10\n7. Rice, 2 packets, 3.80\n8. Butter, 250 grams, 2.40",
)
_EDITS = (
    "Add a comment at the top of this code and repeat the rest without changes:\n\n{}",
    "Repeat this code exactly, and rename nothing:\n\n{}",
)
_REPEATS = (
    "Repeat the following text word for word:\n\n{}",
    "Repeat the following text twice:\n\n{}",
    "Correct any spelling mistakes in the following text and give the whole text back:\n\n{}",
)


def copied_prompts() -> Sequence[str]:
    """Return the prompts, the same ones each time."""
    code = [edit.format(each) for each in _CODE for edit in _EDITS]
    return [*code, *(repeat.format(each) for each in _TEXTS for repeat in _REPEATS)]
