"""How far samples are from data: functions of the features of images, [n, d].

    frechet            the Frechet distance (FID), and the moments that it needs
    kernel             the kernel distance (KID)
    manifold           precision and recall, density and coverage
    sliced             the sliced Wasserstein distance
    inception_score    the Inception Score, of a classifier's logits
    neighbours         the nearest rows of another set
    memorisation       whether samples are copies of training images
    jackknife          the standard error of a Frechet distance, by leaving out each row

All of them read features as `Rows`, block by block, so their memory does not grow with n beyond a few numbers a
row (64 in `sliced`).
"""
