"""The pseudo-code of ABSA (Yao et al. 2018), as its released code runs it at the end of each epoch. Slow, literal, no care for anything."""


def absa(eigenvalues, *, epochs, batch=128, lr=0.1, max_ratio=128, adv_ratio=0.2, period=10):
    """Rows (batch, lr, adversarial ratio, reference) after each epoch."""
    base, rows, reference, timer, monitor = batch, [], None, 0, True
    for epoch, lam in enumerate(eigenvalues, start=1):
        if monitor:
            timer += 1
            if epoch == 1:
                reference = lam
            if lam <= reference / 2:
                reference = lam
                batch, lr, adv_ratio, timer = batch * 2, lr * 2, adv_ratio / 2, 0
            elif timer == period:
                batch, lr, adv_ratio, timer = batch * 2, lr * 2, adv_ratio / 2, 0
            if batch == base * max_ratio:
                adv_ratio, monitor = 0, False
        if epoch >= epochs / 2:
            adv_ratio = 0
        rows.append((batch, lr, adv_ratio, reference))
    return rows
