__all__ = ['ttypes', 'constants', 'Progressor']
