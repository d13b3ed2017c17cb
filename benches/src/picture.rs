//! Horizontal bars as SVG: one bar a row, cut into parts, with the value written behind.

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Written in front of it.
    pub name: String,
    /// Its parts, from left to right.
    pub parts: Vec<f64>,
    /// Lowest and highest total of all runs.
    pub range: (f64, f64),
}

/// Draws bars over a common axis. `parts` names the colours, `unit` stands behind the numbers.
pub fn bars(title: &str, unit: &str, parts: &[&str], bars: &[Bar]) -> String {
    const COLOURS: [&str; 4] = ["#8aa4c8", "#2f6f4f", "#c98b4b", "#7a5195"];
    const LEFT: f64 = 110.0;
    const WIDE: f64 = 480.0;
    const ROW: f64 = 34.0;
    const TOP: f64 = 64.0;
    let most = bars.iter().map(|bar| bar.range.1.max(bar.parts.iter().sum())).fold(f64::MIN_POSITIVE, f64::max);
    let (scale, height) = (WIDE / most, TOP + ROW * bars.len() as f64 + 12.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 700 {height}\" width=\"700\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{title}</text>\n"
    );
    for (index, part) in parts.iter().enumerate() {
        let x = LEFT + 130.0 * index as f64;
        let colour = COLOURS[index % COLOURS.len()];
        svg += &format!(
            "<rect x=\"{x}\" y=\"36\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"47\">{part}</text>\n",
            x + 18.0
        );
    }
    for (row, bar) in bars.iter().enumerate() {
        let (y, mut x) = (TOP + ROW * row as f64, LEFT);
        svg += &format!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n", LEFT - 8.0, y + 16.0, bar.name);
        for (index, part) in bar.parts.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            svg += &format!(
                "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"22\" fill=\"{colour}\"/>\n",
                part * scale
            );
            x += part * scale;
        }
        let (low, high) = (LEFT + bar.range.0 * scale, LEFT + bar.range.1 * scale);
        let middle = y + 11.0;
        svg += &format!(
            "<path d=\"M{low:.1} {middle}H{high:.1}M{low:.1} {}v8M{high:.1} {}v8\" stroke=\"#222\" fill=\"none\"/>\n",
            middle - 4.0,
            middle - 4.0
        );
        let total: f64 = bar.parts.iter().sum();
        svg += &format!("<text x=\"{:.1}\" y=\"{}\">{total:.2} {unit}</text>\n", x.max(high) + 8.0, y + 16.0);
    }
    svg + "</svg>\n"
}
