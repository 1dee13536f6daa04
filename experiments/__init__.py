"""What the notebooks and the chapters share: data, models, training, records, claims, figures."""
