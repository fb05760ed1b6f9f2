//! Tables of a point's multiples.
//!
//! **Owns** their layout: for each window of a number's bits, the multiples of the point that the window's digit can ask for,
//! 64 bytes each. **Promises** entries that k256 computed. **Does not** know whose point it is.

use std::sync::LazyLock;

use k256::ProjectivePoint;
use k256::elliptic_curve::BatchNormalize as _;
use k256::elliptic_curve::point::AffineCoordinates as _;

use super::field::Fe;
use super::scalar::{BETA, Digit, Digits, Half};
use super::sum::{Point, Points};

/// Bits of a window of the generator's table. 24 windows of 1024 entries take 1.5 MiB, one bit more would save two of the
/// 76 additions and cost as much again.
const GENERATOR_WIDTH: u32 = 11;
const GENERATOR_WINDOWS: usize = 24;

/// Bits of a window of a key's table. 26 windows of 16 entries take 26 KiB and serve both halves of a multiple.
const KEY_WIDTH: u32 = 5;
const KEY_WINDOWS: usize = 26;

/// What a key's table takes, bytes.
pub(super) const KEY_TABLE_BYTES: usize = KEY_WINDOWS * (1 << (KEY_WIDTH - 1)) * size_of::<Point>();

const _: () = assert!(GENERATOR_WINDOWS + 2 * KEY_WINDOWS == super::sum::MOST);
// A window's digits reach half its range, so the highest window must have room for what the others carry.
const _: () = assert!(GENERATOR_WINDOWS * 11 > 256 && KEY_WINDOWS * 5 > 128);

static GENERATOR: LazyLock<Table<GENERATOR_WIDTH>> =
    LazyLock::new(|| Table::new(ProjectivePoint::GENERATOR, GENERATOR_WINDOWS));

/// Builds the generator's table, which otherwise the first sum does: some ten milliseconds.
pub(super) fn prepare() {
    LazyLock::force(&GENERATOR);
}

/// Pushes what adds up to `k` times the generator. `None` where there is no room.
pub(super) fn push_generator(points: &mut Points, k: [u64; 4]) -> Option<()> {
    let mut digits = Digits::<GENERATOR_WIDTH>::new(k);
    GENERATOR.entries.chunks_exact(Table::<GENERATOR_WIDTH>::SIZES).try_for_each(|window| {
        let digit = digits.next();
        push(points, window, digit, false, |x| x)
    })
}

/// The multiples of one key's point.
pub(super) struct KeyMultiples(Table<KEY_WIDTH>);

impl KeyMultiples {
    /// Some tenths of a millisecond.
    pub(super) fn new(point: ProjectivePoint) -> Self {
        Self(Table::new(point, KEY_WINDOWS))
    }

    /// Pushes what adds up to `i + jλ` times the point. `None` where there is no room.
    pub(super) fn push(&self, points: &mut Points, (i, j): (Half, Half)) -> Option<()> {
        let (mut i_digits, mut j_digits) = (Digits::<KEY_WIDTH>::of_half(i), Digits::<KEY_WIDTH>::of_half(j));
        self.0.entries.chunks_exact(Table::<KEY_WIDTH>::SIZES).try_for_each(|window| {
            push(points, window, i_digits.next(), i.negative, |x| x)?;
            push(points, window, j_digits.next(), j.negative, |x| x.mul(BETA))
        })
    }
}

/// Pushes a digit's multiple, if it is not zero.
#[inline(always)]
fn push(points: &mut Points, window: &[Point], digit: Digit, negate: bool, map: impl FnOnce(Fe) -> Fe) -> Option<()> {
    let Some(index) = digit.size.checked_sub(1) else { return Some(()) };
    let entry = window.get(usize::try_from(index).ok()?)?;
    points.push(Point { x: map(entry.x), y: entry.y.negate_if(digit.negative != negate) })
}

/// In window w the multiples from 1 to [`Self::SIZES`] of 2^(w · `WIDTH`) times a point.
struct Table<const WIDTH: u32> {
    entries: Box<[Point]>,
}

impl<const WIDTH: u32> Table<WIDTH> {
    /// Entries of a window.
    const SIZES: usize = 1 << (WIDTH - 1);

    fn new(point: ProjectivePoint, windows: usize) -> Self {
        let mut entries = Vec::with_capacity(windows * Self::SIZES);
        let mut base = point;
        for _ in 0..windows {
            let multiples: Vec<ProjectivePoint> =
                std::iter::successors(Some(base), |multiple| Some(multiple + &base)).take(Self::SIZES).collect();
            // The largest one is half of the next window's first.
            base = multiples.last().map_or(base, ProjectivePoint::double);
            let affine = ProjectivePoint::batch_normalize_vartime(multiples.as_slice());
            entries.extend(
                affine
                    .iter()
                    .map(|entry| Point { x: Fe::from_bytes(&entry.x().into()), y: Fe::from_bytes(&entry.y().into()) }),
            );
        }
        Self { entries: entries.into_boxed_slice() }
    }
}
