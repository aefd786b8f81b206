// The configurable cell with layer normalisation (customlstm.Cell(layer_norm=...)). Formula and derivative are those of
// ConfigurableCell; the recurrence calls its halves one by one, with the sums over a row between them. No includes and
// no guard.

struct NormalisedCell : ConfigurableCell {};

template <>
constexpr bool kIsNormalised<NormalisedCell> = true;
