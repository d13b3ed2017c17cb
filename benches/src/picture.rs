//! Horizontal bars as SVG: groups of them, one bar a row, cut into parts, with the value written behind.

/// Bars under a title of their own.
#[derive(Clone, Debug)]
pub struct Group {
    /// Written above them.
    pub title: String,
    /// The bars.
    pub bars: Vec<Bar>,
}

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
pub fn bars(title: &str, unit: &str, parts: &[&str], groups: &[Group]) -> String {
    let most = groups.iter().flat_map(|group| &group.bars).map(Bar::end).fold(f64::MIN_POSITIVE, f64::max);
    let rows: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = TOP + ROW * rows as f64 + TITLE * groups.len() as f64 + 8.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 770 {height}\" width=\"770\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{title}</text>\n"
    );
    for (index, part) in parts.iter().enumerate() {
        let (x, colour) = (LEFT + 130.0 * index as f64, COLOURS[index % COLOURS.len()]);
        svg += &format!(
            "<rect x=\"{x}\" y=\"36\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"47\">{part}</text>\n",
            x + 18.0
        );
    }
    let mut y = TOP;
    for group in groups {
        svg += &format!("<text x=\"10\" y=\"{}\" font-weight=\"bold\">{}</text>\n", y + 16.0, group.title);
        y += TITLE;
        for bar in &group.bars {
            svg += &bar.draw(y, WIDE / most, unit);
            y += ROW;
        }
    }
    svg + "</svg>\n"
}

const COLOURS: [&str; 4] = ["#8aa4c8", "#2f6f4f", "#c98b4b", "#7a5195"];
/// Pixels left of the axis, of the longest bar, from bar to bar, above all groups, and of a group's title.
const LEFT: f64 = 230.0;
const WIDE: f64 = 450.0;
const ROW: f64 = 25.0;
const TOP: f64 = 60.0;
const TITLE: f64 = 26.0;

impl Bar {
    fn total(&self) -> f64 {
        self.parts.iter().sum()
    }

    fn end(&self) -> f64 {
        self.range.1.max(self.total())
    }

    fn draw(&self, y: f64, scale: f64, unit: &str) -> String {
        let (mut svg, mut x) = (String::new(), LEFT);
        svg += &format!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n", LEFT - 8.0, y + 14.0, self.name);
        for (part, colour) in self.parts.iter().zip(COLOURS.iter().cycle()) {
            let wide = part * scale;
            svg += &format!("<rect x=\"{x:.1}\" y=\"{y}\" width=\"{wide:.1}\" height=\"18\" fill=\"{colour}\"/>\n");
            x += wide;
        }
        let (low, high, middle) = (LEFT + self.range.0 * scale, LEFT + self.range.1 * scale, y + 9.0);
        let above = middle - 4.0;
        svg += &format!(
            "<path d=\"M{low:.1} {middle}H{high:.1}M{low:.1} {above}v8M{high:.1} {above}v8\" stroke=\"#222\" fill=\"none\"/>\n"
        );
        svg + &format!("<text x=\"{:.1}\" y=\"{}\">{:.2} {unit}</text>\n", x.max(high) + 8.0, y + 14.0, self.total())
    }
}
