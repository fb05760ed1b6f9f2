//! Sums of table entries.
//!
//! **Owns** points and their additions. All are added in pairs first, in affine coordinates, where the pairs share one
//! inversion: 6 products a pair instead of the 10 of an addition that needs none. A second round would save less than
//! its inversion costs. **Promises** that a sum, where it names one, is the sum of the points that were pushed. **Does
//! not** add equal or opposite points, which need other formulas: then it names none, and the caller takes another way.

use super::field::Fe;

/// The most points of a sum.
pub(super) const MOST: usize = 76;

/// A point of the curve that is not infinity. A cache line each.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(super) struct Point {
    pub(super) x: Fe,
    pub(super) y: Fe,
}

impl Point {
    /// A value for places that hold no point yet.
    const BLANK: Self = Self { x: Fe::ZERO, y: Fe::ZERO };

    /// Whether y² = x³ + 7.
    pub(super) fn is_on_curve(&self) -> bool {
        const B: Fe = Fe::from_limbs([7, 0, 0, 0]);
        self.y.square() == self.x.square().mul(self.x).add(B)
    }
}

/// Points to be added up.
#[derive(Debug)]
pub(super) struct Points {
    points: [Point; MOST],
    count: usize,
}

impl Points {
    pub(super) fn new() -> Self {
        Self { points: [Point::BLANK; MOST], count: 0 }
    }

    /// One more. `None` where there are [`MOST`] already.
    #[inline(always)]
    pub(super) fn push(&mut self, point: Point) -> Option<()> {
        *self.points.get_mut(self.count)? = point;
        self.count += 1;
        Some(())
    }

    /// The sum of all. `None` where it is infinity, or where an addition on the way is not one of two points with
    /// different x.
    pub(super) fn sum(mut self) -> Option<Point> {
        let (points, _) = self.points.split_at_mut_checked(self.count)?;
        let (first, rest) = in_pairs(points)?.split_first()?;
        let mut sum = Jacobian::of(first);
        for point in rest {
            sum = sum.plus(point)?;
        }
        Some(sum.affine())
    }
}

/// Adds the points in pairs; the sums, and the one that is left over, are in front afterwards.
fn in_pairs(points: &mut [Point]) -> Option<&mut [Point]> {
    let pairs = points.len() / 2;
    let left = points.len() - pairs;
    let (lower, upper) = points.split_at_mut_checked(left)?;
    let mut steps = [(Fe::ZERO, Fe::ZERO); MOST / 2];
    let mut product = Fe::ONE;
    for ((a, b), step) in lower.iter().zip(upper.iter()).zip(&mut steps) {
        let run = b.x.sub(a.x);
        *step = (run, product);
        product = product.mul(run);
    }
    // Zero if one of them is.
    if product.is_zero() {
        return None;
    }
    let mut inverse = product.invert();
    let steps = steps.get(..pairs)?;
    for ((a, b), (run, before)) in lower.iter_mut().zip(upper.iter()).zip(steps).take(pairs).rev() {
        let slope = b.y.sub(a.y).mul(inverse.mul(*before));
        inverse = inverse.mul(*run);
        let x = slope.square().sub(a.x).sub(b.x);
        let y = slope.mul(a.x.sub(x)).sub(a.y);
        *a = Point { x, y };
    }
    Some(lower)
}

/// The point (x / z², y / z³), not infinity. It keeps z² and z³ only.
struct Jacobian {
    x: Fe,
    y: Fe,
    z2: Fe,
    z3: Fe,
}

impl Jacobian {
    fn of(point: &Point) -> Self {
        Self { x: point.x, y: point.y, z2: Fe::ONE, z3: Fe::ONE }
    }

    /// The sum with another point: 10 products, one less than where z is kept (Sutherland's "xyzz" form). `None` where the x
    /// are equal.
    #[inline(always)]
    fn plus(&self, point: &Point) -> Option<Self> {
        let run = point.x.mul(self.z2).sub(self.x);
        let rise = point.y.mul(self.z3).sub(self.y);
        if run.is_zero() {
            return None;
        }
        let run2 = run.square();
        let run3 = run2.mul(run);
        let v = self.x.mul(run2);
        let x = rise.square().sub(run3).sub(v.double());
        let y = rise.mul(v.sub(x)).sub(self.y.mul(run3));
        Some(Self { x, y, z2: self.z2.mul(run2), z3: self.z3.mul(run3) })
    }

    fn affine(&self) -> Point {
        let inverse = self.z3.invert();
        // z⁴ / z⁶
        let inverse2 = self.z2.mul(inverse).square();
        Point { x: self.x.mul(inverse2), y: self.y.mul(inverse) }
    }
}

#[cfg(test)]
mod tests {
    use k256::AffinePoint;
    use k256::elliptic_curve::point::AffineCoordinates as _;

    use super::*;

    #[test]
    fn a_point_beside_the_curve_is_seen() {
        let [x, y] =
            [AffinePoint::GENERATOR.x(), AffinePoint::GENERATOR.y()].map(|bytes| Fe::from_bytes(&bytes.into()));
        assert!(Point { x, y }.is_on_curve() && Point { x, y: y.negate_if(true) }.is_on_curve());
        assert!(!Point { x: x.add(Fe::ONE), y }.is_on_curve() && !Point { x, y: y.add(Fe::ONE) }.is_on_curve());
        assert!(!Point::BLANK.is_on_curve());
    }

    #[test]
    fn one_more_than_there_is_room_for_is_refused() {
        let mut points = Points::new();
        assert!((0..MOST).all(|_| points.push(Point::BLANK).is_some()));
        assert!(points.push(Point::BLANK).is_none());
    }
}
